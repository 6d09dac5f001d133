"""The loss as a function of the weights: Hessian products, the density of the spectrum, the training trajectory."""

from clearhead.landscape.hessian import Check, Eigenvalues, Hessian, LandscapeError, check, eigenvalues, hessian
from clearhead.landscape.spectral_density import Density, Trace, density, together, trace
from clearhead.landscape.trajectory import Trajectory, trajectory, weight_vector

__all__ = [
    "Check",
    "Density",
    "Eigenvalues",
    "Hessian",
    "LandscapeError",
    "Trace",
    "Trajectory",
    "check",
    "density",
    "eigenvalues",
    "hessian",
    "together",
    "trace",
    "trajectory",
    "weight_vector",
]
