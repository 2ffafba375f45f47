"""Generates answers to prompts that share images and prefixes: an image is encoded once, a prefix prefilled once.

Words of this folder: a *prompt* is cut into pieces at places where prompts part; a *context* is the KV cache of a
shared prefix, a *tile* the contexts that one group of answers reads, *own* the part of a prompt that no other shares, a
*slot* the room in which one answer is written. *Inner* programs prefill shared pieces, *leaf* programs the last one.
"""
