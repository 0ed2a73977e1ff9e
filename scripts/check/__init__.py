"""`make kustomize-check`: manifests proven before they land. See model.py for the words the modules share."""
