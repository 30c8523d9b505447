"""Rows of a site's moments tensor [ROWS, N]: sums over tokens, per hidden neuron (z its output, dz the loss gradient there)."""

ABS_OUTPUT = 0  # |z|
ABS_OUTPUT_GRADIENT = 1  # |dz|
ABS_PRODUCT = 2  # |z dz|
OUTPUT = 3  # z
OUTPUT_SQUARED = 4  # z^2
TOKENS = 5  # 1: how many tokens were counted
ROWS = 6
