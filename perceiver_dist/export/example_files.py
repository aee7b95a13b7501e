"""Example inputs: one small file of noise per modality, for the input example of an MLflow model."""

import io
import wave

import av
import numpy as np
from PIL import Image


def example_file(modality: str) -> tuple[str, bytes]:
    """Return the name and bytes of a file of noise, small since the example is stored as JSON.

    An image of 32 x 32 pixels, half a second of audio or of video with 32 x 32 pixels, or 64 points.

    Args:
        modality: image, audio, video or points.
    """
    # Seeded and in formats without timestamps, so that exports of a model have the same example.
    random = np.random.default_rng(0)
    file = io.BytesIO()
    match modality:
        case "image":
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
            return "example.png", file.getvalue()
        case "audio":
            with wave.open(file, "wb") as sound:
                sound.setparams((1, 2, 8000, 0, "NONE", ""))
                sound.writeframes(random.integers(-8000, 8000, 4000, dtype=np.int16).tobytes())
            return "example.wav", file.getvalue()
        case "video":
            with av.open(file, "w", format="avi") as clip:
                stream = clip.add_stream("mjpeg", rate=8, width=32, height=32, pix_fmt="yuvj420p")
                for _ in range(4):
                    pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                    clip.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
                clip.mux(stream.encode(None))
            return "example.avi", file.getvalue()
        case _:
            np.save(file, random.uniform(-1, 1, (64, 3)))
            return "example.npy", file.getvalue()
