"""MicroOpt: a slice model learned from data and the optimisation of slice resources on it."""
