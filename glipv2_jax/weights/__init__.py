"""Weights that come with the package: a glipv2_nano that knows rendered scenes, to try everything at once with.

Made by `launch/built_in_weights.sh`; slim, so parameters are bfloat16 and the head of masked words is missing.
"""
import pathlib

BUILT_IN = pathlib.Path(__file__).parent / "scenes"
