"""The mathematics of diffusion: paths, predictions, densities, objectives, solvers, guidance. Torch only, no networks."""
