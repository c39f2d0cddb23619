"""How large the KV cache of onnxruntime-genai is."""

# The runtime sets the KV cache aside at once (0.8 MB a token at Phi-3-mini's size), so it starts
# small and doubles, up to the context length, for requests that need more.
SMALLEST_CAPACITY = 512


def cache_capacity(tokens: int, context_length: int) -> int:
    """Tokens that a KV cache is set aside for, when a request needs so many."""
    capacity = SMALLEST_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return min(capacity, context_length)
