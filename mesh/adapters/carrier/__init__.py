"""The carried directory: a link whose cable is a person."""
