"""The loss as a function of the weights: the spectrum of its Hessian."""

from clearhead.landscape.hessian import Eigenvalues, Hessian, LandscapeError, eigenvalues, hessian
from clearhead.landscape.spectra import BatchSpectrum, Spectrum, spectra

__all__ = [
    "BatchSpectrum",
    "Eigenvalues",
    "Hessian",
    "LandscapeError",
    "Spectrum",
    "eigenvalues",
    "hessian",
    "spectra",
]
