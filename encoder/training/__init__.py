"""Pretraining. run is the entry point, plan describes a run, loop executes it, step is one optimiser step.

recipe and settings choose hyperparameters; optimiser, pace (number of steps), parallel (torchrun) and warm_start
serve the loop; checkpoint saves the state of a run; progress shows it.
"""
