"""Decoders from the bytes of one field to an array of fixed shape: image, audio, video, point cloud."""

from pipelines.decode.audio_video import decode_audio, decode_video
from pipelines.decode.image import decode_image
from pipelines.decode.points import decode_points

__all__ = ["decode_audio", "decode_image", "decode_points", "decode_video"]
