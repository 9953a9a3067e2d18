"""The API's schemas and documents."""
