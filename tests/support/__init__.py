"""Code shared by tests: servers, clients, fakes and data, some of it as fixtures."""
