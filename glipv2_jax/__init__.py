"""GLIPv2 in JAX/Flax.

Letters in shapes, everywhere: B images, H W pixels, C channels, L levels, A anchors over all levels, T tokens,
D embedding width, G ground-truth boxes (padded), K kept detections or sampled regions, N heads.
Boxes are `xyxy`, float32, absolute pixels of the padded canvas; other forms carry it in the name.
"""
__version__ = "0.1.0"
__all__ = ["Detections", "Detector"]


def __getattr__(name):
    """The public classes, imported when they are first used: `import glipv2_jax` alone stays fast."""
    if name == "Detector":
        from glipv2_jax.predict import Detector
        return Detector
    if name == "Detections":
        from glipv2_jax.detections import Detections
        return Detections
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
