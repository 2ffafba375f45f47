"""Online RL of a verifier: replies on human pairs (GCPO), packed as tokens, one compiled update."""
