"""A judge over HTTP: the server, its client, and a client of OpenAI-compatible end points."""

VERSION = 2  # of what server and client say to each other
