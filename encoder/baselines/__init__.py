"""What a trained encoder has to beat: four rules without training, and a plain SASRec.

Each file holds one scorer of encoder/evaluation/scoring.py; none of them reads a release.
"""
