"""Rows of a site's neuron sums [ROWS, N]: sums over tokens, per hidden neuron (z its output, dz the loss gradient there)."""

ABS_OUTPUT = 0  # |z|
ABS_OUTPUT_GRADIENT = 1  # |dz|
OUTPUT = 2  # z
TOKENS = 3  # 1: how many tokens were counted
ROWS = 4
