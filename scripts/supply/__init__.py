"""What the service is made of besides its own code: locked, licensed, checked and listed.

Its command line is ``python -m scripts.supply --help``.

- ``locks``: the packages of both images, by version and hash
- ``licences``: under which licences they are, and which may be
- ``advisories``: known holes, in OSV's format, and who has them
- ``images``: the containers that docker-compose.yml starts
- ``sbom``: all of it as a CycloneDX document
- ``errors``: what may go wrong
"""
