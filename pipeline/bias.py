"""Brightness of MR that changes slowly across a scan, because coils do not reach everywhere alike, made even by N4.

Works on arrays; which channels get it is decided by the plan. SimpleITK is imported only when one does.
Source: Tustison et al. 2010, doi:10.1109/TMI.2010.2046908.
"""

import numpy as np

from pipeline.errors import PlanError
from pipeline.images import Spacing, Volume

FITTED_MM = 4.0  # voxels that the field is fitted to: it is far smoother, and at 1 mm fitting takes minutes
FEWEST_VOXELS = 16  # of an edge that is made coarser
ITERATIONS = (50, 50, 50, 50)


def evened(channel: Volume, spacing_mm: Spacing) -> Volume:
    """(I, J, K) divided by the field that N4 finds in the brighter part of it (Otsu); zeros stay, nothing to fit stays too.

    Raises:
        PlanError: SimpleITK is not installed.
    """
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise PlanError(
            "config: bias_correction is set, SimpleITK to do it expected. `pip install simpleitk`, or remove the setting."
        ) from error
    if channel.max() <= max(0.0, float(channel.min())):
        return channel
    image = sitk.GetImageFromArray(channel.transpose())
    image.SetSpacing(spacing_mm)
    factors = [_coarser(*axis) for axis in zip(channel.shape, spacing_mm, strict=True)]
    small = sitk.Shrink(image, factors)
    inside = sitk.And(sitk.OtsuThreshold(small, 0, 1), sitk.Cast(small > 0, sitk.sitkUInt8))
    if not sitk.GetArrayViewFromImage(inside).any():
        return channel
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(ITERATIONS)
    corrector.SetNumberOfThreads(1)  # cases run side by side, and a sum in another order is another sum
    corrector.Execute(small, inside)
    field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)).transpose()
    return np.divide(channel, np.exp(field), dtype=np.float32)


def _coarser(size: int, spacing_mm: float) -> int:
    """By how much an edge may be shrunk."""
    return max(1, min(round(FITTED_MM / spacing_mm), size // FEWEST_VOXELS))
