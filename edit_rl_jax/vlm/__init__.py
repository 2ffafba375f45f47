"""Holds vision-language models: families of networks, packing of samples, and the engine that generates."""
