"""The recipes that the package ships, one YAML file each."""
