from kd_cli.cli import main

raise SystemExit(main())
