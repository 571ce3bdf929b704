"""The commands of a release, one a file: function(arguments, project) -> exit status."""
