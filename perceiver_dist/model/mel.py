"""Log-mel spectrogram of sound: power per segment of time and mel band of frequency.

A Hann window of twice a segment's length is centred on each segment. Bands are triangular filters, evenly spaced and
half overlapping on the mel scale m(f) = 2595 log10(1 + f / 700) (O'Shaughnessy 1987, HTK's formula), from 0 to half the
sample rate. A full-scale sine has power 0.25, so log10 of the power lies between FLOOR and about 0. It is scaled to
[-1, 1].
"""

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor

FLOOR = -6.0
"""log10 of the power added to every value, so that silence is finite: 60 dB below a power of 1."""


def mel_filters(sample_rate: int, window: int, bands: int) -> Tensor:
    """Return the filter bank: the weight of each frequency of a Fourier transform in each band.

    Args:
        sample_rate: Samples per second.
        window: Samples in the transform.
        bands: Number of bands.

    Returns:
        (window // 2 + 1, bands) fp64, triangles of height 1.
    """
    # On the CPU also where a model is built on the meta device, whose numbers cannot be read.
    cpu = torch.device("cpu")
    frequencies = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64, device=cpu)
    mels = 2595 * torch.log10(1 + frequencies / 700)
    corners = torch.linspace(0, mels[-1].item(), bands + 2, dtype=torch.float64, device=cpu)
    width = corners[1]
    return (1 - (mels[:, None] - corners[1:-1]).abs() / width).clamp(min=0)


def log_mel(sound: Tensor, segment: int, filters: Tensor) -> Tensor:
    """Return the log-mel spectrogram of sounds.

    Args:
        sound: (B, samples), fp32 or fp64 in [-1, 1]; the number of samples is a multiple of `segment`.
        segment: Samples in a segment, an even number.
        filters: (segment + 1, bands), from `mel_filters` for a window of 2 * segment.

    Returns:
        (B, segments, bands) in the dtype of `sound`.
    """
    window = torch.hann_window(2 * segment, dtype=sound.dtype, device=sound.device)
    padded = F.pad(sound, (segment // 2, segment // 2))
    views = padded.unfold(-1, 2 * segment, segment) * window
    power = (torch.fft.rfft(views).abs() / window.sum()).square()
    # Autocast would compute the product in bfloat16, whose 8 bits lose quiet bands.
    with torch.autocast(sound.device.type, enabled=False):
        by_band = power @ filters.to(power.dtype)
    # Adding the floor instead of clamping keeps differences between quiet bands.
    levels = (by_band + 10**FLOOR).log10()
    return 1 - 2 * levels / FLOOR
