"""The OpenAI Realtime protocol: session, turns, server and pages."""
