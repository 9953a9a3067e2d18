"""The opening handshake, from accept to the 101 response: admission, request, rejection."""
