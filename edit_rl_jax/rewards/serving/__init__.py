"""A judge over HTTP: the server, its client, and a client of OpenAI-compatible end points."""
