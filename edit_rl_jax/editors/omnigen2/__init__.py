"""OmniGen2: its transformer, layout, chat and weights, as an `editors.base.Editor`."""
