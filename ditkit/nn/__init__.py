"""Building blocks of the networks: torch modules and functions that know no paper's whole model."""
