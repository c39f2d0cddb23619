"""How large a batch of transformers is at most."""

# Rows of a batch, and rows x (longest prompt + most new tokens). A token's keys and values are
# 0.8 MB at Phi-3-mini's size (32 layers x 2 x 3072 values x 4 bytes): 6.4 GB beside 15.3 GB of
# weights.
BATCH_ROWS = 16
BATCH_TOKENS = 8192
