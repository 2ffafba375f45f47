"""Records of edits, their readers and the input pipeline. What data workers run touches no JAX device."""
