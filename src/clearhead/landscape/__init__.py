"""The loss as a function of the weights: the spectrum of its Hessian, its surface, the way of training through it."""

from clearhead.landscape.density import Density, Trace, density, together, trace
from clearhead.landscape.hessian import Check, Eigenvalues, Hessian, LandscapeError, check, eigenvalues, hessian
from clearhead.landscape.spectra import BatchSpectrum, Spectrum, spectra
from clearhead.landscape.surface import Surface, eigenvector_directions, on_points, random_directions, surface
from clearhead.landscape.trajectory import Trajectory, trajectory, weight_vector

__all__ = [
    "BatchSpectrum",
    "Check",
    "Density",
    "Eigenvalues",
    "Hessian",
    "LandscapeError",
    "Spectrum",
    "Surface",
    "Trace",
    "Trajectory",
    "check",
    "density",
    "eigenvalues",
    "eigenvector_directions",
    "hessian",
    "on_points",
    "random_directions",
    "spectra",
    "surface",
    "together",
    "trace",
    "trajectory",
    "weight_vector",
]
