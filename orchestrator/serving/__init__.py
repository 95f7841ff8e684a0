"""The service of `laser serve`: an HTTP ingress and engine replicas on Ray Serve, and a client."""
