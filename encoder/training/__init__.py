"""Pretraining: run is the door, plan says what a run will do, loop does it, step by step.

recipe and settings choose; optimiser, pace (how many steps), parallel (torchrun) and warm_start serve the loop;
checkpoint keeps where a run stands; progress shows it
"""
