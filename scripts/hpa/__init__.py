"""`make hpa-demo`: autoscaling one can watch. See model.py for the words the modules share, demo.py for the order of things."""
