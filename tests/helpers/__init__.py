"""What tests of several rooms share: seeded checkpoints, releases, runs and stand-ins for publishing."""
