# Completion of `largebatch`, written by `largebatch completion`. In bash: source it, or lay it under
# ~/.local/share/bash-completion/completions/largebatch. In zsh: source it in ~/.zshrc.
_largebatch() {
    local IFS=$'\n' cur=${COMP_WORDS[COMP_CWORD]} key='' lead='' words=''
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -S ' ' -W '@VERBS@' -- "$cur"))
        return
    fi
    # bash takes --key=value apart at the sign, zsh does not.
    if [[ $cur == --*=* ]]; then
        key=${cur%%=*}
        lead="$key="
        cur=${cur#*=}
    elif [[ $cur == '=' ]]; then
        key=${COMP_WORDS[COMP_CWORD-1]}
        cur=''
    elif [[ ${COMP_WORDS[COMP_CWORD-1]} == '=' ]]; then
        key=${COMP_WORDS[COMP_CWORD-2]}
    elif [[ ${COMP_WORDS[COMP_CWORD-1]} == --* && $cur != --* ]]; then
        key=${COMP_WORDS[COMP_CWORD-1]}
    fi
    if [[ -n $key ]]; then
        case $key in
        @VALUES@
        esac
        if [[ -n $words ]]; then
            COMPREPLY=($(compgen -P "$lead" -S ' ' -W "$words" -- "$cur"))
        else
            COMPREPLY=($(compgen -P "$lead" -f -- "$cur"))
        fi
        return
    fi
    if [[ $cur == -* ]]; then
        case ${COMP_WORDS[1]} in
        @OPTIONS@
        esac
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    else
        COMPREPLY=($(compgen -f -- "$cur"))
    fi
}
complete -o nospace -F _largebatch largebatch
