"""Frames as the tests of the models have them."""

from tests.echoprune.models.conftest import make_frames

__all__ = ["make_frames"]
