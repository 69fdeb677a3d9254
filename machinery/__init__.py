"""What no paper is about: engines, processes, run folders, answers, sandboxes. You may leave it shut."""
