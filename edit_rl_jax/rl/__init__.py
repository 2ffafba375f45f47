"""Online RL of flow-matching editors: advantages, losses, and the compiled rollout and update. Knows no model."""
