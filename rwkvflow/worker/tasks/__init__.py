"""One module a task of the worker; each has run(request)."""
