"""The loss as a function of the weights: Hessian products, spectral densities, the training trajectory."""

from clearhead.landscape.hessian import Eigenvalues, Hessian, HvpCheck, LandscapeError, check_hvp, eigenvalues, hessian
from clearhead.landscape.spectrum import SpectralDensity, Trace, pool_densities, spectral_density, trace
from clearhead.landscape.trajectory import Trajectory, trajectory, weight_vector

__all__ = [
    "Eigenvalues",
    "Hessian",
    "HvpCheck",
    "LandscapeError",
    "SpectralDensity",
    "Trace",
    "Trajectory",
    "check_hvp",
    "eigenvalues",
    "hessian",
    "pool_densities",
    "spectral_density",
    "trace",
    "trajectory",
    "weight_vector",
]
