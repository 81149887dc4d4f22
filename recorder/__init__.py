"""What the agents did, on disk: episodes, parallel recording, verification and preview."""
