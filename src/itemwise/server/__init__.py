"""The HTTP server: `app` is the API, `service` what is behind it, `process` how it runs."""
