# Made by tools/completion with shtab; docs/install.md says where it goes.

_shtab_barfs_subparsers=(mount umount demo ls doctor ksym log regs save)

_shtab_barfs_mount_option_strings=(-h --help -f --foreground -o --force --sysfs --proc --devmem --machine --bars-via --noiommu --write-combining --enable --unclaimed --log --log-reads --loop --group --mode --allow-device --read-only-device --memory --registers --no-phys --no-kcore --read-only)
_shtab_barfs_umount_option_strings=(-h --help -q --quiet --dead)
_shtab_barfs_demo_option_strings=(-h --help -f --foreground -o --force --sysfs --proc --devmem --machine --bars-via --noiommu --write-combining --enable --unclaimed --log --log-reads --loop --group --mode --allow-device --read-only-device --memory --registers --no-phys --no-kcore --read-only)
_shtab_barfs_ls_option_strings=(-h --help -v --verbose --json -s -d --sysfs --machine)
_shtab_barfs_doctor_option_strings=(-h --help --json --sysfs --proc --devmem --machine)
_shtab_barfs_ksym_option_strings=(-h --help --json --sysfs --proc --devmem)
_shtab_barfs_log_option_strings=(-h --help -f --follow)
_shtab_barfs_regs_option_strings=(-h --help --json -o --output --for --bar --offset --include --top --perl --registers --sysfs --proc --machine)
_shtab_barfs_save_option_strings=(-h --help -o --output --read --registers --redact --sysfs --proc --devmem)
_shtab_barfs_option_strings=(-h --help --version)

_shtab_barfs_mount_pos_0_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_mount__o_COMPGEN=_barfs_compgen_options
_shtab_barfs_mount___sysfs_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_mount___proc_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_mount___devmem_COMPGEN=_shtab_compgen_files
_shtab_barfs_mount___machine_COMPGEN=_shtab_compgen_files
_shtab_barfs_mount___log_COMPGEN=_shtab_compgen_files
_shtab_barfs_mount___group_COMPGEN=_barfs_compgen_groups
_shtab_barfs_mount___allow_device_COMPGEN=_barfs_compgen_functions
_shtab_barfs_mount___read_only_device_COMPGEN=_barfs_compgen_functions
_shtab_barfs_mount___memory_COMPGEN=_barfs_compgen_functions
_shtab_barfs_mount___registers_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_umount_pos_0_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_demo_pos_0_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_demo__o_COMPGEN=_barfs_compgen_options
_shtab_barfs_demo___sysfs_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_demo___proc_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_demo___devmem_COMPGEN=_shtab_compgen_files
_shtab_barfs_demo___machine_COMPGEN=_shtab_compgen_files
_shtab_barfs_demo___log_COMPGEN=_shtab_compgen_files
_shtab_barfs_demo___group_COMPGEN=_barfs_compgen_groups
_shtab_barfs_demo___allow_device_COMPGEN=_barfs_compgen_functions
_shtab_barfs_demo___read_only_device_COMPGEN=_barfs_compgen_functions
_shtab_barfs_demo___memory_COMPGEN=_barfs_compgen_functions
_shtab_barfs_demo___registers_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_ls_pos_0_COMPGEN=_barfs_compgen_functions
_shtab_barfs_ls___sysfs_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_ls___machine_COMPGEN=_shtab_compgen_files
_shtab_barfs_doctor_pos_0_COMPGEN=_barfs_compgen_functions
_shtab_barfs_doctor___sysfs_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_doctor___proc_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_doctor___devmem_COMPGEN=_shtab_compgen_files
_shtab_barfs_doctor___machine_COMPGEN=_shtab_compgen_files
_shtab_barfs_ksym___sysfs_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_ksym___proc_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_ksym___devmem_COMPGEN=_shtab_compgen_files
_shtab_barfs_log_pos_0_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_log_pos_1_COMPGEN=_barfs_compgen_functions
_shtab_barfs_regs___include_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_regs___registers_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_regs___sysfs_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_regs___proc_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_regs___machine_COMPGEN=_shtab_compgen_files
_shtab_barfs_save_pos_0_COMPGEN=_barfs_compgen_functions
_shtab_barfs_save__o_COMPGEN=_shtab_compgen_files
_shtab_barfs_save___output_COMPGEN=_shtab_compgen_files
_shtab_barfs_save___sysfs_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_save___proc_COMPGEN=_shtab_compgen_dirs
_shtab_barfs_save___devmem_COMPGEN=_shtab_compgen_files

_shtab_barfs_mount___bars_via_choices=(resource devmem vfio)
_shtab_barfs_mount___loop_choices=(fast stock)
_shtab_barfs_demo___bars_via_choices=(resource devmem vfio)
_shtab_barfs_demo___loop_choices=(fast stock)
_shtab_barfs_regs___bar_choices=(0 1 2 3 4 5)
_shtab_barfs_pos_0_choices=(mount umount demo ls doctor ksym log regs save)

_shtab_barfs_mount__h_nargs=0
_shtab_barfs_mount___help_nargs=0
_shtab_barfs_mount__f_nargs=0
_shtab_barfs_mount___foreground_nargs=0
_shtab_barfs_mount___force_nargs=0
_shtab_barfs_mount___noiommu_nargs=0
_shtab_barfs_mount___write_combining_nargs=0
_shtab_barfs_mount___enable_nargs=0
_shtab_barfs_mount___unclaimed_nargs=0
_shtab_barfs_mount___log_reads_nargs=0
_shtab_barfs_mount___no_phys_nargs=0
_shtab_barfs_mount___no_kcore_nargs=0
_shtab_barfs_mount___read_only_nargs=0
_shtab_barfs_umount__h_nargs=0
_shtab_barfs_umount___help_nargs=0
_shtab_barfs_umount__q_nargs=0
_shtab_barfs_umount___quiet_nargs=0
_shtab_barfs_umount___dead_nargs=0
_shtab_barfs_demo__h_nargs=0
_shtab_barfs_demo___help_nargs=0
_shtab_barfs_demo__f_nargs=0
_shtab_barfs_demo___foreground_nargs=0
_shtab_barfs_demo___force_nargs=0
_shtab_barfs_demo___noiommu_nargs=0
_shtab_barfs_demo___write_combining_nargs=0
_shtab_barfs_demo___enable_nargs=0
_shtab_barfs_demo___unclaimed_nargs=0
_shtab_barfs_demo___log_reads_nargs=0
_shtab_barfs_demo___no_phys_nargs=0
_shtab_barfs_demo___no_kcore_nargs=0
_shtab_barfs_demo___read_only_nargs=0
_shtab_barfs_ls__h_nargs=0
_shtab_barfs_ls___help_nargs=0
_shtab_barfs_ls__v_nargs=0
_shtab_barfs_ls___verbose_nargs=0
_shtab_barfs_ls___json_nargs=0
_shtab_barfs_doctor__h_nargs=0
_shtab_barfs_doctor___help_nargs=0
_shtab_barfs_doctor___json_nargs=0
_shtab_barfs_ksym__h_nargs=0
_shtab_barfs_ksym___help_nargs=0
_shtab_barfs_ksym___json_nargs=0
_shtab_barfs_log__h_nargs=0
_shtab_barfs_log___help_nargs=0
_shtab_barfs_log__f_nargs=0
_shtab_barfs_log___follow_nargs=0
_shtab_barfs_regs_pos_1_nargs='*'
_shtab_barfs_regs__h_nargs=0
_shtab_barfs_regs___help_nargs=0
_shtab_barfs_regs___json_nargs=0
_shtab_barfs_regs___perl_nargs=0
_shtab_barfs_save_pos_0_nargs='*'
_shtab_barfs_save__h_nargs=0
_shtab_barfs_save___help_nargs=0
_shtab_barfs_save___registers_nargs=0
_shtab_barfs_save___redact_nargs=0
_shtab_barfs_pos_0_nargs=A...
_shtab_barfs__h_nargs=0
_shtab_barfs___help_nargs=0
_shtab_barfs___version_nargs=0


# Custom Preamble
_barfs_compgen_groups() {
  compgen -g -- "$1"
}

_barfs_compgen_options() {
  compgen -W "ro rw allow_other allow_root noexec nosuid nodev fsname=" -- "$1"
}

_barfs_compgen_functions() {
  compgen -W "$(barfs ls 2>/dev/null | awk '{ print $1; print $2 }' | tr : - | sort -u)" -- "$1"
}

# End Custom Preamble

# $1=COMP_WORDS[1]
_shtab_compgen_files() {
  compgen -f -- $1  # files
}

# $1=COMP_WORDS[1]
_shtab_compgen_dirs() {
  compgen -d -- $1  # recurse into subdirs
}

# $1=COMP_WORDS[1]
_shtab_replace_nonword() {
  echo "${1//[^[:word:]]/_}"
}

# set default values (called for the initial parser & any subparsers)
_set_parser_defaults() {
  local subparsers_var="${prefix}_subparsers[@]"
  sub_parsers=${!subparsers_var-}

  local current_option_strings_var="${prefix}_option_strings[@]"
  current_option_strings=${!current_option_strings_var}

  completed_positional_actions=0

  _set_new_action "pos_$completed_positional_actions" true
}

# $1=action identifier
# $2=positional action (bool)
# set all identifiers for an action's parameters
_set_new_action() {
  current_action="${prefix}_$(_shtab_replace_nonword $1)"

  local current_action_compgen_var=${current_action}_COMPGEN
  current_action_compgen="${!current_action_compgen_var-}"

  local current_action_choices_var="${current_action}_choices[@]"
  current_action_choices="${!current_action_choices_var-}"

  local current_action_nargs_var="${current_action}_nargs"
  if [ -n "${!current_action_nargs_var-}" ]; then
    current_action_nargs="${!current_action_nargs_var}"
  else
    current_action_nargs=1
  fi

  current_action_args_start_index=$(( $word_index + 1 - $pos_only ))

  current_action_is_positional=$2
}

# Notes:
# `COMPREPLY`: what will be rendered after completion is triggered
# `completing_word`: currently typed word to generate completions for
# `${!var}`: evaluates the content of `var` and expand its content as a variable
#     hello="world"
#     x="hello"
#     ${!x} -> ${hello} -> "world"
_shtab_barfs() {
  local completing_word="${COMP_WORDS[COMP_CWORD]}"
  local previous_word="${COMP_WORDS[COMP_CWORD-1]}"
  local completed_positional_actions
  local current_action
  local current_action_args_start_index
  local current_action_choices
  local current_action_compgen
  local current_action_is_positional
  local current_action_nargs
  local current_option_strings
  local sub_parsers
  COMPREPLY=()

  local prefix=_shtab_barfs
  local word_index=0
  local pos_only=0 # "--" delimiter not encountered yet
  _set_parser_defaults
  word_index=1

  # determine what arguments are appropriate for the current state
  # of the arg parser
  while [ $word_index -ne $COMP_CWORD ]; do
    local this_word="${COMP_WORDS[$word_index]}"

    if [[ $pos_only = 1 || " $this_word " != " -- " ]]; then
      if [[ -n $sub_parsers && " ${sub_parsers[@]} " == *" $this_word "* ]]; then
        # valid subcommand: add it to the prefix & reset the current action
        prefix="${prefix}_$(_shtab_replace_nonword $this_word)"
        _set_parser_defaults
      fi

      if [[ " ${current_option_strings[@]} " == *" $this_word "* ]]; then
        # a new action should be acquired (due to recognised option string or
        # no more input expected from current action);
        # the next positional action can fill in here
        _set_new_action $this_word false
      fi

      if [[ "$current_action_nargs" != "*" ]] && \
         [[ "$current_action_nargs" != "+" ]] && \
         [[ "$current_action_nargs" != "?" ]] && \
         [[ "$current_action_nargs" != *"..." ]] && \
         (( $word_index + 1 - $current_action_args_start_index - $pos_only >= \
            $current_action_nargs )); then
        $current_action_is_positional && let "completed_positional_actions += 1"
        _set_new_action "pos_$completed_positional_actions" true
      fi
    else
      pos_only=1 # "--" delimiter encountered
    fi

    let "word_index+=1"
  done

  # Generate the completions

  COMPREPLY=()
  if [[ $pos_only = 0 && "$completing_word" == -* &&
        ( -z "$current_action_compgen" || "$current_action_is_positional" = true ) ]]; then
    # optional argument started: use option strings
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(
      compgen -W "${current_option_strings[*]}" -- "$completing_word")
  elif [[ "$previous_word" =~ ^[0-9\&]*[\<\>]\>?$ ]]; then
    # handle redirection operators
    compopt -o filenames 2>/dev/null || : # bash>=4
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$completing_word")
  else
    # use choices & compgen
    local action_compgen_word="$completing_word"
    # handle tab-completing in the middle of a line (#248 <- #116)
    [[ -n "$current_action_compgen" && "$completing_word" == -* ]] && action_compgen_word=""
    [ -n "$current_action_compgen" ] && {
      [[ "$current_action_compgen" =~ _(file|dir|glob|FILE|DIR|GLOB)|File|Dir|Glob ]] &&
        compopt -o filenames 2>/dev/null || : # bash>=4
      while IFS= read -r line; do COMPREPLY+=("$line"); done < <(
        "$current_action_compgen" "$action_compgen_word")
    }
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(
      compgen -W "${current_action_choices[*]}" -- "$completing_word")
  fi

  if [[ ${#COMPREPLY[@]} = 0 ]]; then
    # native fallback matches are not necessarily filenames (e.g. variables)
    compopt +o filenames 2>/dev/null || : # bash>=4
  fi

  return 0
}

complete -o bashdefault -F _shtab_barfs barfs
