"""EditScore (arXiv 2509.23909): a judge that writes reasons and scores; its prompts, parser and objective."""
