"""A dataset of edits filtered by a judge: scored (`scoring`), ranked and chosen (`ranking`), shown (`pages`)."""
