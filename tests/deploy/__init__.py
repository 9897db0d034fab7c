"""Tests of docker-compose.yml, of its images, and of what it brings along."""
