"""GLIPv2 in JAX/Flax.

Letters in shapes, everywhere: B images, H W pixels, C channels, L levels, A anchors over all levels, T tokens,
D embedding width, G ground-truth boxes (padded), K kept detections or sampled regions, N heads.
Boxes are `xyxy`, float32, absolute pixels of the padded canvas; other forms carry it in the name.
"""
__version__ = "0.1.0"
