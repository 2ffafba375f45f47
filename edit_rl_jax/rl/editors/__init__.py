"""Improves flow-matching editors with rewards: rollout, losses, the update and the evaluation beside it."""
