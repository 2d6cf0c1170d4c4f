"""The engine of the course: pages, notebooks, exercises and grading. It knows nothing of attention."""
