"""What no paper is about: engines, processes, run folders, answers, sandboxes. One may leave this folder shut."""
