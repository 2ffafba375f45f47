"""Flow matching without a model: schedules, solvers, steps with log-probabilities, guidance.

Conventions of the whole package: time runs from 0 (noise) to 1 (data), x_t = t x_1 + (1 - t) n, and a velocity is the
field's v = x_1 - n, so that x_1 = x + (1 - t) v and n = x - t v. Models trained with the opposite sign or time are
turned by their editor. Latents are fp32 [B, *latent]; a mask [B, *token] (True = valid) covers the leading latent axes.
"""
